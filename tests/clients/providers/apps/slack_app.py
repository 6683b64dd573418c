"""slack_sdk: a message, pages of channels."""

from how import KEY, LINES, LOCAL
from slack_sdk import WebClient

exec(LINES)
print("posted", client.chat_postMessage(channel="C1", text="hi")["ts"])
print("channels", [channel["name"] for page in client.conversations_list(limit=1) for channel in page["channels"]])
