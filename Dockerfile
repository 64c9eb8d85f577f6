# syntax=docker/dockerfile:1
FROM python:3.12-slim AS build
WORKDIR /app
# With the extra `otel`, of which nothing is loaded unless `telemetry` is on; LOCK=requirements.txt leaves it out.
ARG LOCK=requirements-otel.txt
COPY .ci/install.sh .ci/requirements.txt .ci/requirements-otel.txt ./
RUN PIP_NO_CACHE_DIR=1 sh install.sh "$LOCK" /venv/.runtime

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin forward \
    && install --directory --owner=forward --mode=0700 /var/lib/forward-sse
COPY --from=build /venv /venv
WORKDIR /app
COPY proxy proxy
COPY config config
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Where rows wait for a ledger in PostgreSQL: mount a volume there.
ENV STATE_DIRECTORY=/var/lib/forward-sse
USER forward
EXPOSE 8080 9090
# SIGTERM drains: give the container a stop timeout above `drain_timeout`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import sys, urllib.request as u; sys.exit(u.urlopen('http://127.0.0.1:8080/healthz', timeout=2).status != 200)"]
ENTRYPOINT ["python", "-m", "proxy"]
CMD ["serve"]
