// A real identity provider (oidc-provider), and an API that takes its tokens alone.
//
// usage: identity.mjs FOLDER. Writes keys and secrets into FOLDER, then one line of JSON: its ports.
import { writeFileSync } from 'node:fs';
import http from 'node:http';
import { once } from 'node:events';

import * as jose from 'jose';
import Provider from 'oidc-provider';

const [folder] = process.argv.slice(2);
const write = (name, text) => writeFileSync(`${folder}/${name}`, text, { mode: 0o600 });
const secret = () => [...crypto.getRandomValues(new Uint8Array(24))].map((n) => n.toString(16).padStart(2, '0')).join('');

const listen = async (server) => {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server.address().port;
};

const identity = http.createServer();
const issuer = `http://127.0.0.1:${await listen(identity)}`;

const secrets = { basic: secret(), post: secret(), rotating: secret(), grants: secret() };
for (const [name, value] of Object.entries(secrets)) write(`${name}.secret`, value);
const client = await jose.generateKeyPair('ES256', { extractable: true });
const signer = await jose.generateKeyPair('RS256', { extractable: true });
write('client.pem', await jose.exportPKCS8(client.privateKey));
write('signer.pem', await jose.exportPKCS8(signer.privateKey));
const subject = new jose.SignJWT({}).setProtectedHeader({ alg: 'RS256' }).setIssuer('cluster').setSubject('pod');
write('subject', await subject.setAudience(issuer).setExpirationTime('10m').sign(signer.privateKey));

const JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const machine = (name, more) => ({
  client_id: name, grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
  client_secret: secrets[name], ...more,
});
const provider = new Provider(issuer, {
  clients: [
    machine('basic', { token_endpoint_auth_method: 'client_secret_basic' }),
    machine('post', { token_endpoint_auth_method: 'client_secret_post' }),
    machine('key', {
      token_endpoint_auth_method: 'private_key_jwt', token_endpoint_auth_signing_alg: 'ES256',
      jwks: { keys: [{ ...(await jose.exportJWK(client.publicKey)), kid: 'one', use: 'sig' }] },
    }),
    machine('grants', { grant_types: [JWT_BEARER, EXCHANGE] }),
    machine('rotating', {
      grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'], redirect_uris: ['https://app.x.test/cb'],
    }),
  ],
  features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  rotateRefreshToken: true,
  ttl: { AccessToken: 600, ClientCredentials: 600, RefreshToken: 3600, Grant: 3600 },
});
// Both grants hand a token out for a JWT that jose takes for good.
const forJwt = (field, checks) => async (ctx, next) => {
  const { payload } = await jose.jwtVerify(ctx.oidc.params[field], signer.publicKey, { audience: checks.audience ?? issuer, ...checks });
  if (payload.sub !== checks.subject) throw new Error('another subject');
  const token = new provider.ClientCredentials({ client: ctx.oidc.client, scope: ctx.oidc.params.scope });
  ctx.body = { access_token: await token.save(), token_type: 'Bearer', expires_in: token.expiration, issued_token_type: 'urn:ietf:params:oauth:token-type:access_token' };
  await next();
};
provider.registerGrantType(JWT_BEARER, forJwt('assertion', { issuer: 'app', subject: 'user', audience: `${issuer}/token` }), ['assertion', 'scope']);
provider.registerGrantType(EXCHANGE, forJwt('subject_token', { issuer: 'cluster', subject: 'pod' }),
  ['subject_token', 'subject_token_type', 'audience', 'scope']);
identity.on('request', provider.callback());

const grant = new provider.Grant({ accountId: 'user', clientId: 'rotating' });
grant.addOIDCScope('openid offline_access');
const first = new provider.RefreshToken({
  client: await provider.Client.find('rotating'), accountId: 'user', grantId: await grant.save(), scope: 'openid offline_access',
  gty: 'authorization_code', authTime: Math.floor(Date.now() / 1000), claims: {}, iiat: Math.floor(Date.now() / 1000),
});
write('seed', await first.save());

// Each path `/end...` ends the first token of a client that it is called with, and refuses it: there has to be another one.
const ended = new Set();
const api = http.createServer(async (request, response) => {
  const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
  const known = (await provider.AccessToken.find(token)) ?? (await provider.ClientCredentials.find(token));
  const client = known?.clientId;
  const call = `${client} ${request.url}`;
  const ends = request.url.startsWith('/end') && client && !ended.has(call);
  if (ends) {
    ended.add(call);
    await known.destroy();
  }
  response.writeHead(client && !ends ? 200 : 401, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ client: client ?? null }));
});
console.log(JSON.stringify({ issuer, api: await listen(api) }));
