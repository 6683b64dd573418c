// How the client is made, which the table says: `eval(LINES)`. `KEY` is the app's dummy, `LOCAL` the provider at the local endpoint.
export const { APP_KEY: KEY, LOCAL, LINES, PORT } = process.env;
