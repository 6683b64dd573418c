"""boto3, SES: both of its protocols."""

import boto3
from how import KEY, LINES, LOCAL

exec(LINES)
client.verify_email_identity(EmailAddress="me@example.com")
mail = {"Subject": {"Data": "hi"}, "Body": {"Text": {"Data": "ü & more"}}}
print("sent", bool(client.send_email(Source="me@example.com", Destination={"ToAddresses": ["a@example.com"]}, Message=mail)["MessageId"]))
print("sent", bool(newer.send_email(FromEmailAddress="me@example.com", Destination={"ToAddresses": ["a@example.com"]},
                                    Content={"Simple": mail})["MessageId"]))
