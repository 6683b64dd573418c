"""boto3. Arguments: what to do; where, or `-` for the real hosts; for `large`, how many bytes."""

import hashlib
import io
import os
import random
import sys

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

WHAT, WHERE = sys.argv[1], sys.argv[2]
REGION = os.environ["AWS_DEFAULT_REGION"]


def client(service: str, host: str | None = None):
    options = {"region_name": REGION}
    if WHERE != "-":
        # At a local endpoint hosts other than the first are named behind an at sign.
        options["endpoint_url"] = WHERE if WHERE.startswith("https:") or not host else f"{WHERE}@{host}.{REGION}.amazonaws.com"
    s3 = {"addressing_style": "virtual" if WHERE == "-" else "path"}
    return boto3.client(service, config=Config(s3=s3, retries={"total_max_attempts": 1}), **options)


class Random(io.RawIOBase):
    """Bytes that are not kept, and their hash."""

    def __init__(self, length: int):
        self._left, self._random, self.hash = length, random.Random(7), hashlib.sha256()

    def readable(self):
        return True

    def read(self, size=-1):
        size = min(size if size >= 0 else self._left, self._left)
        data = self._random.randbytes(size)
        self._left -= size
        self.hash.update(data)
        return data


def refused():
    try:
        client("s3").list_buckets()
    except ClientError as error:
        print("refused", error.response["Error"]["Code"])


def services():
    s3, bucket = client("s3"), f"bucket-{os.getpid()}"
    s3.create_bucket(Bucket=bucket)
    for key in ("plain", "with space/and+plus&ü=(1)~.txt", "a//b"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"hello " + key.encode(), Metadata={"who": "me"})
        got = s3.get_object(Bucket=bucket, Key=key)
        assert got["Body"].read() == b"hello " + key.encode() and got["Metadata"] == {"who": "me"}, key
    # A body whose length is not known before, with a checksum behind it.
    s3.upload_fileobj(io.BytesIO(b"x" * 100_000), bucket, "stream", ExtraArgs={"ChecksumAlgorithm": "CRC32"})
    assert s3.get_object(Bucket=bucket, Key="stream", Range="bytes=0-9")["Body"].read() == b"x" * 10
    assert len(s3.list_objects_v2(Bucket=bucket, Prefix="with space/")["Contents"]) == 1
    s3.delete_object(Bucket=bucket, Key="plain")
    ses = client("ses", "email")
    ses.verify_email_identity(EmailAddress="me@example.com")
    ses.send_email(Source="me@example.com", Destination={"ToAddresses": ["you@example.com"]},
                   Message={"Subject": {"Data": "hi"}, "Body": {"Text": {"Data": "ü & more"}}})
    topic = client("sns", "sns").create_topic(Name="topic")["TopicArn"]
    assert client("sns", "sns").publish(TopicArn=topic, Message="hello")["MessageId"]
    sqs = client("sqs", "sqs")
    queue = sqs.create_queue(QueueName="queue")["QueueUrl"]
    assert queue
    assert client("sts", "sts").get_caller_identity()["Arn"].endswith("user/outgate")
    store = client("secretsmanager", "secretsmanager")
    name = f"name-{os.getpid()}"
    store.create_secret(Name=name, SecretString="value")
    assert store.get_secret_value(SecretId=name)["SecretString"] == "value"
    print("all done")


def large():
    s3, bucket, length = client("s3"), f"large-{os.getpid()}", int(sys.argv[3])
    s3.create_bucket(Bucket=bucket)
    body = Random(length)
    s3.upload_fileobj(body, bucket, "large", Config=TransferConfig(multipart_chunksize=16 << 20, max_concurrency=2))
    got, hashed, size = s3.get_object(Bucket=bucket, Key="large")["Body"], hashlib.sha256(), 0
    for piece in got.iter_chunks(1 << 20):
        hashed.update(piece)
        size += len(piece)
    assert size == length and hashed.digest() == body.hash.digest(), size
    print("same hash")


{"refused": refused, "services": services, "large": large}[WHAT]()
