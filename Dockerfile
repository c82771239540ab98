# The upgrade as a container: `docker run --rm -e DATABASE_URL=... usage-rollup` migrates and exits;
# with a command, or as a base image with a CMD, it migrates and then becomes that command.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}

RUN useradd --system --create-home --home-dir /app migrate
WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements.txt

COPY pyproject.toml README.md LICENSE alembic.ini entrypoint.sh ./
COPY src ./src
COPY alembic ./alembic
# The build backend is among the pinned requirements: nothing is fetched here.
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

USER migrate
ENTRYPOINT ["/app/entrypoint.sh"]
