"""datadog-api-client: metrics sent, pages of monitors."""

import os
import time

from datadog_api_client import ApiClient, Configuration
from datadog_api_client.v1.api.monitors_api import MonitorsApi
from datadog_api_client.v2.api.metrics_api import MetricsApi
from datadog_api_client.v2.model.metric_payload import MetricPayload
from datadog_api_client.v2.model.metric_point import MetricPoint
from datadog_api_client.v2.model.metric_series import MetricSeries
from how import KEY, LINES, LOCAL

exec(LINES)
with ApiClient(configuration) as client:
    series = MetricSeries(metric="jobs", points=[MetricPoint(timestamp=int(time.time()), value=1.0)])
    print("sent", MetricsApi(client).submit_metrics(body=MetricPayload(series=[series])).errors)
    print("monitors", [one.name for one in MonitorsApi(client).list_monitors_with_pagination(page_size=1)])
