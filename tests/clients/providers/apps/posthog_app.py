"""posthog: an event."""

from how import KEY, LINES, LOCAL
from posthog import Posthog

exec(LINES)
failed = []
client.on_error = lambda error, batch: failed.append(error)
client.capture("event", distinct_id="user", properties={"a": 1})
client.shutdown()
print("sent", failed)
