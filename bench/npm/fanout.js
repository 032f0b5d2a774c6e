// The npm module as a contestant of the benchmark. It reads commands of the driver from its standard
// input, one line of JSON each, and writes the responses to file descriptor 3. It ends when its
// standard input does.
const fs = require('fs');
const http = require('http');
const readline = require('readline');

const cluster = require('@mimik/cluster');

let node;

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// connect resets the peak memory. The first time it also creates the node and registers it, and the
// driver then waits until the node has announced itself to all peers.
const connect = async (endpoints) => {
  fs.writeFileSync('/proc/self/clear_refs', '5'); // resets VmHWM
  if (node) return;
  const type = 'mds';
  node = cluster({
    serverSettings: {
      id: 'me', type, port: 1, basePath: '/mds/v1', ip: { local: '127.0.0.1' }, public: { protocol: 'http:' },
    },
    cluster: { management: 'on', timeout: endpoints.Timeout / 1e6 },
    registration: { retry: 1000 },
    dependencies: {
      mIT: { url: endpoints.Registry, audience: 'mIT' },
      [type]: { url: 'http://127.0.0.1:1/mds/v1', audience: type },
    },
    security: {
      server: { id: type, secret: 'secret', issuer: endpoints.Issuer, audience: type, accessKey: 'key' },
      generic: { key: 'noGeneric', audience: 'noGeneric' },
    },
  });
  node.register();
  for (let i = 0; process.env.REGISTRATION_STATUS !== 'registered'; i += 1) {
    if (i === 600) throw new Error(`not registered: ${process.env.REGISTRATION_STATUS}`);
    await sleep(50); // eslint-disable-line no-await-in-loop
  }
};

// An evicted peer is neither in results nor in failures.
const call = async () => {
  const { results, failures } = await node.rpCluster({ method: 'GET', url: '/things' });
  return { Results: results.length, Failures: failures.length };
};

// Times are in nanoseconds, like a time.Duration.
const now = () => Number(process.hrtime.bigint());
const usedCPU = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
};

// runCallers makes concurrent calls until the time is over, at least one per caller.
const runCallers = async (callers, time) => {
  const end = now() + time;
  const sum = { Calls: 0, Results: 0, Failures: 0 };
  const times = [];
  const caller = async () => {
    do {
      const start = now();
      const got = await call(); // eslint-disable-line no-await-in-loop
      times.push(now() - start);
      sum.Calls += 1;
      sum.Results += got.Results;
      sum.Failures += got.Failures;
    } while (now() < end);
  };
  await Promise.all(Array.from({ length: callers }, caller));
  times.sort((a, b) => a - b);
  const quantile = (share) => times[Math.max(0, Math.ceil(share * times.length) - 1)];
  return { ...sum, P50: quantile(0.5), P99: quantile(0.99) };
};

const maxMemory = () => Number(/VmHWM:\s*(\d+) kB/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;

const commands = {
  connect,
  disconnect: () => http.globalAgent.destroy(),
  round: async (task) => {
    if (!task.Cold) await runCallers(task.Callers, task.Time / 4);
    const start = now();
    const cpu = usedCPU();
    const sum = await runCallers(task.Callers, task.Time);
    return { ...sum, Took: now() - start, CPU: usedCPU() - cpu, Peak: maxMemory() };
  },
  call: async () => {
    const start = now();
    return { ...await call(), Took: now() - start };
  },
};

const respond = (response) => fs.writeSync(3, `${JSON.stringify(response)}\n`);
readline.createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const { name, args } = JSON.parse(line);
    try { respond({ result: await commands[name](args) }); }
    catch (err) { respond({ error: err.message || String(err) }); }
  })
  .on('close', () => process.exit(0));
