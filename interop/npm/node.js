// A service that uses the npm module, for the tests of this folder.
//
// Its configuration is in the environment. It inherits its listening socket as descriptor 4. It
// reads commands as lines of JSON from standard input and writes their results as lines to
// descriptor 3. It ends when standard input is closed, which happens when the test ends.
const fs = require('fs');
const readline = require('readline');
const express = require('express');
const oauthHelper = require('@mimik/oauth-helper');
const { sendResult, sendError, getRichError } = require('@mimik/response-helper');
const { getCorrelationId, getUserAgent } = require('@mimik/request-helper');
const swaggerHelper = require('@mimik/swagger-helper');
const clusterModule = require('@mimik/cluster');

const { env } = process;
const type = env.SERVER_TYPE;
const base = env.SERVER_BASE_PATH || `/${type}/v1`;
const located = env.SERVER_LOCATION_LON && env.SERVER_LOCATION_LAT;

const config = {
  serverSettings: {
    id: env.SERVER_ID,
    type,
    port: Number(env.SERVER_PORT),
    basePath: base,
    ip: { local: env.SERVER_LOCAL_IPV4, public: env.SERVER_PUBLIC_IPV4 },
    public: {
      protocol: env.SERVER_PUBLIC_PROTOCOL || 'http:',
      domainName: env.SERVER_PUBLIC_DOMAIN_NAME,
      location: located
        ? { type: 'Point', coordinates: [Number(env.SERVER_LOCATION_LON), Number(env.SERVER_LOCATION_LAT)] }
        : undefined,
    },
  },
  cluster: { management: env.CLUSTER_MANAGEMENT || 'off', timeout: Number(env.REQUEST_TIMEOUT || 10000) },
  registration: { retry: Number(env.REGISTRATION_RETRY || 3000) },
  dependencies: {
    mIT: { url: env.MIT_URL, audience: env.MIT_AUDIENCE },
    [type]: { url: `http://127.0.0.1:${env.SERVER_PORT}${base}`, audience: env[`${type.toUpperCase()}_AUDIENCE`] },
  },
  security: {
    server: {
      id: env.OAUTH_CLIENT_ID,
      secret: env.OAUTH_CLIENT_SECRET,
      issuer: env.OAUTH_ISSUER,
      audience: env.OAUTH_CLIENT_AUDIENCE,
      accessKey: env.OAUTH_CLIENT_ACCESS_KEY,
    },
    generic: {
      key: env.OAUTH_GENERIC_KEY || 'noGeneric',
      previousKey: env.OAUTH_GENERIC_PREVIOUS_KEY,
      audience: env.OAUTH_GENERIC_AUDIENCE || 'noGeneric',
    },
  },
};

const me = { serverId: config.serverSettings.id };
const oauth = oauthHelper(config);
const cluster = clusterModule(config);

// operation stands in for the swagger middleware of a service. It adds the operation and its
// parameters to the request and checks the token. Like the middleware of mimik's services it
// rejects tokens with a 403.
const operation = (operationId, scopes, params, controller) => (req, res) => {
  req.swagger = { params: {}, operation: { operationId } };
  Object.entries(params(req)).forEach(([name, value]) => { req.swagger.params[name] = { value }; });
  oauth.apiTokenSecurityHelper(req, { flow: 'application' }, scopes, (err) => {
    if (err) {
      err.statusCode = err.statusCode || 403;
      res.statusCode = err.statusCode;
      swaggerHelper.sendError(err, req, res);
      return;
    }
    // An exception of a controller is a 500, as in all express services.
    try { controller(req, res); }
    catch (thrown) { sendError(getRichError('System', thrown.message), res, null, swaggerHelper.convertParams(req, true)); }
  });
};
const none = () => ({});
const respond = (data) => (req, res) => sendResult({ data: data(req), server: me }, 200, res, swaggerHelper.convertParams(req));

// record appends each exchange to a file, in the form of package exchanges.
const record = (req, res, next) => {
  const written = [];
  const end = res.end.bind(res);
  res.end = (body, ...args) => {
    if (body) written.push(Buffer.from(body));
    fs.appendFileSync(`${env.CLUSTER_EXCHANGES}/npm-${process.pid}.jsonl`, `${JSON.stringify({
      Handler: 'npm',
      Method: req.method,
      Host: req.headers.host,
      Target: req.originalUrl,
      Request: { Header: lists(req.headers), Body: (req.rawBody || Buffer.alloc(0)).toString('base64') },
      Status: res.statusCode,
      Response: { Header: lists(res.getHeaders()), Body: Buffer.concat(written).toString('base64') },
    })}\n`);
    return end(body, ...args);
  };
  next();
};
const lists = (headers) => Object.fromEntries(Object.entries(headers).map(([name, value]) => [
  name.split('-').map((word) => word[0].toUpperCase() + word.slice(1)).join('-'),
  [].concat(value).map(String),
]));

const app = express();
if (env.CLUSTER_EXCHANGES) app.use(record);
app.use(express.json({ verify: (req, res, body) => { req.rawBody = body; } }));
app.post(`${base}/itResources`, operation('createItResource', ['create:itResource'], (req) => ({ newItResource: req.body }), cluster.createItResource));
app.delete(
  `${base}/itResources/:id/servers/:serverId`,
  operation('deleteServer', ['delete:server'], (req) => ({ id: req.params.id, serverId: req.params.serverId }), cluster.deleteServer),
);

// The other endpoints are those of the Go node.
const mirror = (req) => ({
  serverId: me.serverId,
  query: req.query,
  body: req.body,
  correlationId: getCorrelationId(req),
  userAgent: getUserAgent(req),
  caller: { clientId: req.clientId || '', tokenType: req.tokenType || '', customer: req.customer || '', cluster: !!req.cluster },
});
app.get(`${base}/things`, operation('getThings', [], none, respond(() => [me.serverId, `${me.serverId}-second`])));
app.get(`${base}/one`, operation('getOne', [], none, respond(() => ({ one: me.serverId }))));
app.get(`${base}/none`, operation('getNone', [], none, (req, res) => res.json({ server: me })));
app.get(`${base}/bare`, operation('getBare', [], none, (req, res) => sendResult(['unsigned'], 200, res, swaggerHelper.convertParams(req))));
app.get(`${base}/mirror`, operation('getMirror', [], none, respond(mirror)));
app.post(`${base}/mirror`, operation('postMirror', [], none, respond(mirror)));
app.get(`${base}/hang`, operation('getHang', [], none, () => {}));
app.get(`${base}/fail/:status`, operation('getFail', [], none, (req, res) => sendError(
  getRichError(Number(req.params.status), 'requested failure', { why: 'requested' }),
  res,
  null,
  swaggerHelper.convertParams(req),
)));
app.post(`${base}/relay`, operation('relay', [], none, (req, res) => {
  const correlationId = getCorrelationId(req);
  cluster.rpCluster({ method: 'POST', url: '/mirror', headers: { 'x-correlation-id': correlationId }, data: { relayed: true } })
    .then((response) => sendResult({ data: { ...mirror(req), peers: response.data }, server: me }, 200, res, swaggerHelper.convertParams(req)));
}));

// view returns the servers that the node knows. It announces an itResource with another id, which
// changes only the status in the environment, and restores that.
const view = () => new Promise((resolve, reject) => {
  if (env.REGISTRATION_STATUS !== 'registered') {
    resolve([]);
    return;
  }
  const { CLUSTER_STATUS_SERVERS, CLUSTER_STATUS_UPDATED_AT } = env;
  cluster.createItResource(
    {
      method: 'POST',
      url: `${base}/itResources`,
      headers: {},
      cluster: true,
      tokenType: type,
      swagger: { params: { newItResource: { value: { id: 'another', servers: [] } } }, operation: { operationId: 'createItResource' } },
    },
    {
      setHeader: () => {},
      end: (body) => {
        const { data } = JSON.parse(body);
        Object.assign(env, { CLUSTER_STATUS_SERVERS, CLUSTER_STATUS_UPDATED_AT });
        if (data) resolve(data.servers);
        else reject(new Error(body));
      },
    },
  );
});
const ids = (servers) => servers.map((server) => server.serverId);

const commands = {
  register: (correlationId) => { cluster.register(correlationId || undefined); return {}; },
  unregister: (correlationId) => cluster.unRegister(correlationId || undefined),
  view,
  status: () => ({
    registration: env.REGISTRATION_STATUS || '',
    servers: env.CLUSTER_STATUS_SERVERS || '',
    updatedAt: env.CLUSTER_STATUS_UPDATED_AT || '',
    leaseTime: env.CLUSTER_STATUS_LEASE_TIME || '',
  }),
  fanout: async ({ method, path, query, body, correlationId, customer, retries }) => {
    const options = { method: method || 'GET', url: path };
    if (query) options.params = query;
    if (body) options.data = body;
    if (correlationId) options.headers = { 'x-correlation-id': correlationId };
    if (customer) options.token = { customerName: customer };
    if (retries) options.retry = { retries, delay: 20 };
    const before = ids(await view());
    const start = Date.now();
    const response = await cluster.rpCluster(options);
    return { response, milliseconds: Date.now() - start, before, after: ids(await view()) };
  },
  // call sends a request to one server, with a plain token.
  call: ({ url, correlationId }) => oauth.rpAuth(type, { method: 'GET', url, headers: correlationId ? { 'x-correlation-id': correlationId } : {} }),
  correlate: (incoming) => incoming.map((value) => getCorrelationId({ headers: { 'x-correlation-id': value } })),
};

const write = (message) => fs.writeSync(3, `${JSON.stringify(message)}\n`);
const run = async ({ id, command, args }) => {
  try { write({ id, result: await commands[command](args) }); }
  catch (err) { write({ id, error: err.message || String(err) }); }
};
readline.createInterface({ input: process.stdin })
  .on('line', (line) => run(JSON.parse(line)))
  .on('close', () => process.exit(0));

const shutDown = () => cluster.unRegister().then((departure) => {
  write({ id: 0, result: departure });
  process.exit(departure.errors ? 1 : 0);
});
process.on('SIGTERM', shutDown);
process.on('SIGINT', shutDown);

app.listen({ fd: 4 }, () => write({ id: 0, result: 'ready' }));
