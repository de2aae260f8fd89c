# One image: the gateway, and (with the `local` extra) the local LLM server.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml requirements.lock README.md ./
RUN pip install --no-deps --require-hashes -r requirements.lock
# The one package whose hash is not pinned: PyTorch's CPU wheels are in its own index only.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url ${TORCH_INDEX} torch==2.13.0
COPY gateway gateway
RUN pip install --no-deps --no-build-isolation -e .
ENV GATEWAY_CACHE_DIR=/opt/models
RUN gateway model fetch

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home /app gateway
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/models /opt/models
COPY . .
ENV PATH=/opt/venv/bin:$PATH \
    GATEWAY_HOME=/app GATEWAY_CACHE_DIR=/opt/models GATEWAY_HOST=0.0.0.0 GATEWAY_STATE_DIR=/tmp/gateway \
    PYTHONDONTWRITEBYTECODE=1
USER gateway
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=2s --start-period=20s \
    CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready', timeout=1)"
CMD ["gateway", "serve"]
