"""mailchimp-marketing: a ping, a page of lists."""

import mailchimp_marketing
from how import KEY, LINES, LOCAL

exec(LINES)
print("ping", client.ping.get()["health_status"])
print("lists", [one["name"] for one in client.lists.get_all_lists(count=1)["lists"]])
