"""twilio: a message, pages of messages."""

from how import KEY, LINES, LOCAL
from twilio.rest import Client

exec(LINES)
print("sent", client.messages.create(to="+15005550006", from_="+15005550001", body="hi").sid)
print("listed", [one.sid for one in client.messages.list(page_size=1)])
