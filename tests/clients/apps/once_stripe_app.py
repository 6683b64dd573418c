"""Many POSTs by the official stripe package with its retries on. Arguments: `stripe.api_base` or `-`, a prefix, a count, threads.

Prints one line a POST: its name, and `done` or what was raised.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import stripe

base, prefix, count, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
stripe.api_key = os.environ["APP_KEY"]
stripe.max_network_retries = 3
if base != "-":
    stripe.api_base = base
elif "SSL_CERT_FILE" in os.environ:
    stripe.ca_bundle_path = os.environ["SSL_CERT_FILE"]


def post(name: str) -> str:
    try:
        got = stripe.Customer.create(description=name).description
    except stripe.StripeError as error:
        return f"{name} {type(error).__name__} {error.http_status}"
    return f"{name} done" if got == name else f"{name} another's answer: {got}"


with ThreadPoolExecutor(threads) as pool:
    for line in pool.map(post, (f"{prefix}-{number}" for number in range(count))):
        print(line)
