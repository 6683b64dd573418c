"""How the client is made, which the table says: `exec(LINES)`. `KEY` is the app's dummy, `LOCAL` the provider at the local endpoint."""

import os

KEY = os.environ["APP_KEY"]
LOCAL = os.environ.get("LOCAL", "")
LINES = os.environ["LINES"]
