"""google-api-python-client: cells of a sheet read and written, or pages of a calendar."""

from google.oauth2.credentials import Credentials
from googleapiclient.discovery import build
from how import KEY, LINES, LOCAL

exec(LINES)
if hasattr(client, "spreadsheets"):
    values = client.spreadsheets().values()
    print("read", values.get(spreadsheetId="s1", range="A1:B1").execute()["values"])
    print("appended", values.append(spreadsheetId="s1", range="A1", valueInputOption="RAW", body={"values": [["x"]]}).execute()["updates"]["updatedRows"])
else:
    events, found = client.events(), []
    request = events.list(calendarId="primary", maxResults=1)
    while request:
        page = request.execute()
        found += [one["id"] for one in page["items"]]
        request = events.list_next(request, page)
    print("events", found)
