// Writes what the helpers of npm services send to a file, see TestGoldenFile.
const fs = require('fs');
const http = require('http');
const { sendResult, sendError, getRichError, notImplemented } = require('@mimik/response-helper');
const { convertParams } = require('@mimik/swagger-helper');
const { getCorrelationId } = require('@mimik/request-helper');

const request = {
  method: 'GET',
  url: '/users/1',
  headers: { 'x-correlation-id': 'a-request@4/2026-02-03T04:05:06.789Z' },
  swagger: { params: { id: { value: '1' }, none: { value: undefined } }, operation: { operationId: 'getUser' } },
};
const quiet = true; // no log
const options = convertParams(request, quiet);

// sent returns what send writes.
const sent = (send) => {
  const result = { headers: {} };
  const res = {
    setHeader: (name, value) => { result.headers[name.toLowerCase()] = value; },
    end: (body) => { result.body = JSON.parse(body); },
  };
  send(res);
  return { status: res.statusCode, ...result };
};
const result = (data, status) => sent((res) => sendResult(data, status, res, options, quiet));
const error = (err) => sent((res) => sendError(err, res, null, options, quiet));
const server = { serverId: 'node-1' };
const user = { id: '1', name: 'Ann' };
const info = { field: 'name' };

const names = ['System', 'Partial', 'MultiStatus', 'Parameter', 'ParameterError', 'UnAuthorized', 'Forbidden', 'NotFound',
  'NotImplemented', 'Conflict', 'Unprocessable', 'unknown'];
const titles = {};
Object.keys(http.STATUS_CODES).map(Number).filter((n) => n >= 400).forEach((n) => {
  titles[n] = getRichError(n, 'message').title;
});
const isDate = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

fs.writeFileSync(process.argv[2], `${JSON.stringify({
  params: options,
  results: {
    '200': result({ data: user, server }, 200),
    '201': result({ data: user, server }, 201),
    list: result({ data: [user], server }, 200),
    null: result({ data: null, server }, 200),
    'without server': result(user, 200),
  },
  named: Object.fromEntries(names.map((name) => [name, error(getRichError(name, 'what is wrong', info))])),
  errors: {
    'without info': error(getRichError('Parameter', 'what is wrong')),
    'with a cause': error(getRichError('System', 'what failed', info, new Error('why'))),
    'with a number': error(getRichError(409, 'what is wrong', info)),
    'plain error': error(new Error('what failed')),
    'not implemented': sent((res) => notImplemented('', res, options)),
  },
  titles,
  correlationIds: {
    label: getCorrelationId('service-startup-preOps').replace(isDate, '{date}'),
    request: getCorrelationId(request),
  },
}, null, 2)}\n`);
