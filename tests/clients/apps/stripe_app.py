"""The official stripe package. Arguments: what stands in `stripe.api_base` (or `-`), and the lines it needs."""

import asyncio
import os
import sys

import stripe

base, lines = sys.argv[1], sys.argv[2:]
stripe.api_key = os.environ["APP_KEY"]
if base != "-":
    stripe.api_base = base
if "ca" in lines:
    # It gives its HTTP client a bundle of its own, which wins over the environment.
    stripe.ca_bundle_path = os.environ["SSL_CERT_FILE"]

if "async" in lines:
    customers = asyncio.run(stripe.Customer.list_async(limit=1))
    print("listed", customers.data[0].id)
else:
    print("created", stripe.Customer.create(email="b@example.com").email)
    print("listed", [customer.id for customer in stripe.Customer.list(limit=1).auto_paging_iter()])
