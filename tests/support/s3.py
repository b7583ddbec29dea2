"""A real server of the S3 protocol, on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server(files, bucket="shards") -> Iterator:
    """Holds these files, bytes by key, in one bucket; this process's variables point to it. Yields boto3's client."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    variables = KEYS | {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())}
    with mock.patch.dict(os.environ, variables):
        client = boto3.client("s3")
        try:
            client.create_bucket(Bucket=bucket)
            for key, data in files.items():
                client.put_object(Bucket=bucket, Key=key, Body=data)
            yield client
            # all servers of a process share their buckets
            for held in client.list_objects_v2(Bucket=bucket).get("Contents", []):
                client.delete_object(Bucket=bucket, Key=held["Key"])
            client.delete_bucket(Bucket=bucket)
        finally:
            client.close()
            server.stop()
