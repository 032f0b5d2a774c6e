// Logs the lines of the golden file in the Kinesis mode. The first argument selects the set.
const logger = require('@mimik/sumologic-winston-logger');

const id = '11111111-2222-4333-8444-555555555555';
const date = '2026-11-25T20:51:08.971Z';

const sets = {
  defaults() {
    logger.info('without server type and id');
  },
  lines() {
    logger.debug('debug');
    logger.info('info');
    logger.warn('warn');
    logger.error('error');
    logger.info('');

    logger.info('metadata', { string: 'x', integer: 1, float: 1.5, yes: true, nothing: null, list: [1, 'two', { three: 3 }], nested: { a: { b: 'c' } } });
    logger.info('empty metadata', {});
    logger.info('numbers', { zero: 0, negative: -1, large: 9007199254740991, exponent: 1e21, small: 1e-7, tenth: 0.1 });
    logger.info('date', { at: new Date(1700000000123) });
    logger.info('"quotes" \\ \n\t\r\b\f\u0001 <html> & \u2028 é 日本 😀', { 'key "quoted"\n': '"quotes" \\ \n\t\r\b\f\u0001 <html> & \u2028 é 日本 😀' });
    logger.info('object with message', { message: 'inner', a: 1 });
    logger.error('object with error', { error: new Error('cause') });

    logger.info('correlated', { a: 1 }, `${id}@3/${date}`);
    logger.info('correlated without metadata', `${id}@0/${date}`);
    logger.error('correlated error', { statusCode: 500 }, `${id}@1/1700000000000`);
    logger.info('no step', `${id}/${date}`);
    logger.info('no date', `${id}@2`);
    logger.info('id alone', id);
    logger.info('label', `service-startup-preOps@0/${date}`);
    logger.info('step with a tail', `${id}@4x/${date}`);
    logger.info('negative step', `${id}@-1/${date}`);
    logger.info('two dates', `${id}@1/a/b`);
    logger.info('two steps', `${id}@1@2/a`);

    logger.info('masked', {
      password: 'p', other: 'o', inner: { password: 'kept', secret: 's', list: [{ secret: { a: 1 } }] },
    });
    logger.info('masked elements', {
      users: [{ name: 'a', pin: 1 }, { name: 'b', pin: 2 }], cards: [{ kind: 'visa', number: '1' }, { kind: 'other', number: '2' }],
    });
    logger.info('masked message: password', { message: 'password', password: 'p' });
  },
};

sets[process.argv[2]]();
logger.flushAndExit(0);
