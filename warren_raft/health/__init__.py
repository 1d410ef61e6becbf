"""Pages over HTTP for probes and for Prometheus: /livez, /readyz, /status, /metrics (docs/health.md)."""
