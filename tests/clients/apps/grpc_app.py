"""grpcio with the stubs of the health service. Arguments: `tls HOST:PORT`, or `plain HOST:PORT AUTHORITY`.

Unary, server streaming, trailers, and an error status.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

METADATA = [("authorization", "Bearer " + os.environ["APP_KEY"])]
if sys.argv[1] == "tls":
    channel = grpc.secure_channel(sys.argv[2], grpc.ssl_channel_credentials())
else:
    channel = grpc.insecure_channel(sys.argv[2], options=[("grpc.default_authority", sys.argv[3])])
stub = health_pb2_grpc.HealthStub(channel)
status = health_pb2.HealthCheckResponse.ServingStatus


def check(service):
    request = health_pb2.HealthCheckRequest(service=service)
    return stub.Check.with_call(request, metadata=METADATA, timeout=10)


response, call = check("known")
print("unary", status.Name(response.status), dict(call.trailing_metadata())["x-served-by"])

try:
    check("unknown")
except grpc.RpcError as error:
    print("error", error.code().name, error.details())

seen = []
for response in stub.Watch(health_pb2.HealthCheckRequest(service="watched"), metadata=METADATA, timeout=10):
    if not seen:
        # The origin sends the second message only after this call.
        check("watched")
    seen.append(status.Name(response.status))
print("streamed", seen)
