"""resend: a mail, a list of domains."""

import resend
from how import KEY, LINES, LOCAL

exec(LINES)
print("sent", resend.Emails.send({"from": "me@example.com", "to": "a@example.com", "subject": "hi", "text": "x"})["id"])
print("domains", [one["name"] for one in resend.Domains.list()["data"]])
