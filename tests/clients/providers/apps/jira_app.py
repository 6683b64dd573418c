"""jira: a search of two pages, a new issue."""

from how import KEY, LINES, LOCAL
from jira import JIRA

exec(LINES)
print("found", [one.key for one in client.enhanced_search_issues("project = X", maxResults=0)])
print("created", client.create_issue(project={"key": "X"}, summary="new", issuetype={"name": "Task"}).key)
