# Outrider as a sidecar container: slim, unprivileged, the path of a call compiled.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml README.md ./
COPY src src
COPY config config
COPY examples examples
RUN python -m venv /outrider && HATCH_BUILD_HOOK_ENABLE_MYPYC=1 /outrider/bin/pip install --no-cache-dir '.[jwt,dns,redis]'

FROM python:3.12-slim
COPY --from=build /outrider /outrider
ENV PATH=/outrider/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 4100 4102 4103
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s CMD ["outrider", "health"]
ENTRYPOINT ["outrider"]
CMD ["run", "-c", "/etc/outrider"]
