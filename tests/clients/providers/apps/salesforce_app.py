"""simple-salesforce: a query of two pages, a new record."""

from how import KEY, LINES, LOCAL
from simple_salesforce import Salesforce

exec(LINES)
print("found", [one["Name"] for one in client.query_all("SELECT Name FROM Account")["records"]])
print("created", client.Contact.create({"LastName": "Smith"})["id"])
