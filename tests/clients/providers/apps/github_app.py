"""PyGithub: a repository, pages of issues, a new issue."""

import github
from how import KEY, LINES, LOCAL

exec(LINES)
repository = client.get_repo("o/r")
print("repository", repository.full_name)
print("issues", [one.number for one in repository.get_issues()])
print("created", repository.create_issue(title="new").number)
