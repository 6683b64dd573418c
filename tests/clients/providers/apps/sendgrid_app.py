"""sendgrid: a mail, a list."""

import json

from how import KEY, LINES, LOCAL
from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Mail

exec(LINES)
print("sent", client.send(Mail("me@example.com", "a@example.com", "hi", "text")).status_code)
print("bounces", [one["email"] for one in json.loads(client.client.suppression.bounces.get(query_params={"limit": 1}).body)])
