-- wrk prints no p99.9 of its own: hand all numbers over as JSON.
done = function(summary, latency, requests)
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    'REPORT {"requests": %d, "microseconds": %d, "not_2xx": %d, "errors": %d, "p50": %d, "p99": %d, "p999": %d}\n',
    summary.requests, summary.duration, summary.errors.status, errors,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
