// One npm node, as a service of the reference has it, for the tests of this folder.
//
// It is set up by the environment, listens on the socket that it inherits as descriptor 4, takes
// orders as lines of JSON on its standard input, and answers them as lines on descriptor 3. It
// ends with its standard input, so with the test that started it.
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

// operation is what a swagger middleware does before a controller runs: it leaves the operation
// and its parameters on the request and has the token checked. What it does not like it answers
// with a 403, as that of mimik's services does.
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
    // A controller that throws is a 500, as in any express service.
    try { controller(req, res); }
    catch (thrown) { sendError(getRichError('System', thrown.message), res, null, swaggerHelper.convertParams(req, true)); }
  });
};
const none = () => ({});
const answer = (data) => (req, res) => sendResult({ data: data(req), server: me }, 200, res, swaggerHelper.convertParams(req));

const app = express();
app.use(express.json());
app.post(`${base}/itResources`, operation('createItResource', ['create:itResource'], (req) => ({ newItResource: req.body }), cluster.createItResource));
app.delete(
  `${base}/itResources/:id/servers/:serverId`,
  operation('deleteServer', ['delete:server'], (req) => ({ id: req.params.id, serverId: req.params.serverId }), cluster.deleteServer),
);

// The endpoints of the service itself are those of the Go node.
const mirror = (req) => ({
  serverId: me.serverId,
  query: req.query,
  body: req.body,
  correlationId: getCorrelationId(req),
  userAgent: getUserAgent(req),
  caller: { clientId: req.clientId || '', tokenType: req.tokenType || '', customer: req.customer || '', cluster: !!req.cluster },
});
app.get(`${base}/things`, operation('getThings', [], none, answer(() => [me.serverId, `${me.serverId}-second`])));
app.get(`${base}/one`, operation('getOne', [], none, answer(() => ({ one: me.serverId }))));
app.get(`${base}/none`, operation('getNone', [], none, (req, res) => res.json({ server: me })));
app.get(`${base}/bare`, operation('getBare', [], none, (req, res) => sendResult(['nobody'], 200, res, swaggerHelper.convertParams(req))));
app.get(`${base}/mirror`, operation('getMirror', [], none, answer(mirror)));
app.post(`${base}/mirror`, operation('postMirror', [], none, answer(mirror)));
app.get(`${base}/hang`, operation('getHang', [], none, () => {}));
app.get(`${base}/fail/:status`, operation('getFail', [], none, (req, res) => sendError(
  getRichError(Number(req.params.status), 'failing as told', { why: 'told' }),
  res,
  null,
  swaggerHelper.convertParams(req),
)));
app.post(`${base}/relay`, operation('relay', [], none, (req, res) => {
  const correlationId = getCorrelationId(req);
  cluster.rpCluster({ method: 'POST', url: '/mirror', headers: { 'x-correlation-id': correlationId }, data: { relayed: true } })
    .then((response) => sendResult({ data: { ...mirror(req), peers: response.data }, server: me }, 200, res, swaggerHelper.convertParams(req)));
}));

// known asks the node for its view without changing it: an itResource of another id changes
// nothing but the status in the environment, which is put back.
const known = () => new Promise((resolve, reject) => {
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

const orders = {
  register: (correlationId) => { cluster.register(correlationId || undefined); return {}; },
  unregister: (correlationId) => cluster.unRegister(correlationId || undefined),
  view: known,
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
    const before = ids(await known());
    const start = Date.now();
    const response = await cluster.rpCluster(options);
    return { response, milliseconds: Date.now() - start, before, after: ids(await known()) };
  },
  // call is a request of the service to another, not to all its peers, and with a plain token.
  call: ({ url, correlationId }) => oauth.rpAuth(type, { method: 'GET', url, headers: correlationId ? { 'x-correlation-id': correlationId } : {} }),
  correlate: (incoming) => incoming.map((value) => getCorrelationId({ headers: { 'x-correlation-id': value } })),
};

const tell = (line) => fs.writeSync(3, `${JSON.stringify(line)}\n`);
const carryOut = async ({ id, order, args }) => {
  try { tell({ id, answer: await orders[order](args) }); }
  catch (err) { tell({ id, error: err.message || String(err) }); }
};
readline.createInterface({ input: process.stdin })
  .on('line', (line) => carryOut(JSON.parse(line)))
  .on('close', () => process.exit(0));

const leave = () => cluster.unRegister().then((departure) => {
  tell({ id: 0, answer: departure });
  process.exit(departure.errors ? 1 : 0);
});
process.on('SIGTERM', leave);
process.on('SIGINT', leave);

app.listen({ fd: 4 }, () => tell({ id: 0, answer: 'ready' }));
