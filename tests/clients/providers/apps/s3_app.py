"""boto3, S3: two objects, pages of them, one read back."""

import os

import boto3
from botocore.config import Config
from how import KEY, LINES, LOCAL

exec(LINES)
BUCKET = f"bucket-{os.getpid()}"
client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
for key in ("one", "two words+ü"):
    client.put_object(Bucket=BUCKET, Key=key, Body=b"hello " + key.encode())
pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, PaginationConfig={"PageSize": 1})
print("listed", [one["Key"] for page in pages for one in page.get("Contents", [])])
print("read", client.get_object(Bucket=BUCKET, Key="two words+ü")["Body"].read().decode())
