// The npm module as a contestant: it registers with the stub cluster and carries out the driver's
// orders, lines of JSON on its standard input, and reports on descriptor 3. It ends with its
// standard input.
const fs = require('fs');
const http = require('http');
const readline = require('readline');

const cluster = require('@mimik/cluster');

let node;

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// meet makes the node and has it register, the first time. The driver waits until all peers have
// been told.
const meet = async (place) => {
  fs.writeFileSync('/proc/self/clear_refs', '5'); // makes the most memory it ever had what it has now
  if (node) return;
  const type = 'mds';
  node = cluster({
    serverSettings: {
      id: 'me', type, port: 1, basePath: '/mds/v1', ip: { local: '127.0.0.1' }, public: { protocol: 'http:' },
    },
    cluster: { management: 'on', timeout: place.Timeout / 1e6 },
    registration: { retry: 1000 },
    dependencies: {
      mIT: { url: place.Registry, audience: 'mIT' },
      [type]: { url: 'http://127.0.0.1:1/mds/v1', audience: type },
    },
    security: {
      server: { id: type, secret: 'secret', issuer: place.Issuer, audience: type, accessKey: 'key' },
      generic: { key: 'noGeneric', audience: 'noGeneric' },
    },
  });
  node.register();
  for (let i = 0; process.env.REGISTRATION_STATUS !== 'registered'; i += 1) {
    if (i === 600) throw new Error(`not registered: ${process.env.REGISTRATION_STATUS}`);
    await pause(50); // eslint-disable-line no-await-in-loop
  }
};

// A peer that answers with an error is a failure; one that was evicted is in neither list.
const call = async () => {
  const { results, failures } = await node.rpCluster({ method: 'GET', url: '/things' });
  return { Results: results.length, Failures: failures.length };
};

// Times are in nanoseconds, as Go has them.
const now = () => Number(process.hrtime.bigint());
const used = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
};

const calls = async (callers, time) => {
  const end = now() + time;
  const sum = { Calls: 0, Results: 0, Failures: 0 };
  const took = [];
  const caller = async () => {
    do {
      const start = now();
      const got = await call(); // eslint-disable-line no-await-in-loop
      took.push(now() - start);
      sum.Calls += 1;
      sum.Results += got.Results;
      sum.Failures += got.Failures;
    } while (now() < end);
  };
  await Promise.all(Array.from({ length: callers }, caller));
  took.sort((a, b) => a - b);
  const quantile = (share) => took[Math.max(0, Math.ceil(share * took.length) - 1)];
  return { ...sum, P50: quantile(0.5), P99: quantile(0.99) };
};

const peak = () => Number(/VmHWM:\s*(\d+) kB/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;

const orders = {
  meet,
  part: () => http.globalAgent.destroy(),
  round: async (task) => {
    if (!task.Cold) await calls(task.Callers, task.For / 4);
    const start = now();
    const cpu = used();
    const sum = await calls(task.Callers, task.For);
    return { ...sum, Took: now() - start, CPU: used() - cpu, Peak: peak() };
  },
  call: async () => {
    const start = now();
    return { ...await call(), Took: now() - start };
  },
};

const tell = (report) => fs.writeSync(3, `${JSON.stringify(report)}\n`);
readline.createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const order = JSON.parse(line);
    try { tell({ answer: await orders[order.do](order.args) }); }
    catch (err) { tell({ error: err.message || String(err) }); }
  })
  .on('close', () => process.exit(0));
