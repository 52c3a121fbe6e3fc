# frameflex serve, for a CPU:
#   docker build -t frameflex-serve .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --memory 4g -p 8000:8000 \
#     -e FRAMEFLEX_TOKEN -v "$PWD/best.safetensors:/model/best.safetensors:ro" frameflex-serve
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
# torch's CPU wheels are a tenth of those with CUDA. The import ends a build in which torch and torchvision don't fit.
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir '.[app]' \
    && python -c 'import frameflex.app.service, frameflex.deploy.recognizer' \
    && rm -rf /src/*

RUN groupadd --gid 10001 frameflex \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin frameflex
USER 10001:10001
WORKDIR /tmp
ENV HOME=/tmp PYTHONUNBUFFERED=1

EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["frameflex", "serve"]
CMD ["/model/best.safetensors", "--host", "0.0.0.0", "--port", "8000"]
