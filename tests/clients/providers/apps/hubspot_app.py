"""hubspot-api-client: a contact, pages of contacts, a search."""

import os

import hubspot
from how import KEY, LINES, LOCAL
from hubspot.crm.contacts import PublicObjectSearchRequest, SimplePublicObjectInputForCreate

exec(LINES)
contacts = client.crm.contacts
print("created", contacts.basic_api.create(SimplePublicObjectInputForCreate(properties={"email": "a@example.com"}, associations=[])).id)
print("listed", [one.id for one in contacts.get_all()])
print("found", contacts.search_api.do_search(PublicObjectSearchRequest(query="a", limit=1, after="0", sorts=[], properties=[], filter_groups=[])).total)
