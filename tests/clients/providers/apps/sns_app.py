"""boto3, SNS: a topic, a message, the list of topics."""

import boto3
from how import KEY, LINES, LOCAL

exec(LINES)
topic = client.create_topic(Name="topic")["TopicArn"]
print("published", bool(client.publish(TopicArn=topic, Message="hello")["MessageId"]))
print("listed", [one["TopicArn"].rsplit(":")[-1] for page in client.get_paginator("list_topics").paginate() for one in page["Topics"]])
