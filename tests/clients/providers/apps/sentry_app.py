"""sentry-sdk: an event."""

import sentry_sdk
from how import KEY, LINES, LOCAL

exec(LINES)
sentry_sdk.capture_message("hello")
client = sentry_sdk.get_client()
client.flush(timeout=10)
print("sent", not client.transport._worker.full())
