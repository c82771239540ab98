# The upgrade as a container: `docker run --rm -e DATABASE_URL=... usage-rollup migrate` migrates and exits;
# `usage-rollup status` and the other commands run without migrating. It writes nothing but to the database.
#   docker build --tag usage-rollup .          or `make image`, which also fills in the labels
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}

# By number, because Kubernetes' runAsNonRoot does not look names up.
RUN useradd --uid 10001 --home-dir /app --no-create-home --shell /usr/sbin/nologin migrate
WORKDIR /app

# An environment of its own, so that any base with Python and pip will do, whatever else is installed there.
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt ./
RUN python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv install --no-cache-dir --require-hashes --requirement requirements.txt

COPY pyproject.toml README.md LICENSE alembic.ini entrypoint.sh ./
COPY src ./src
COPY alembic ./alembic
# The build backend is among the pinned requirements: nothing is fetched here. Compiled now, because nothing
# can be written later.
RUN pip --python /opt/venv install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && python3 -m compileall -q src alembic

# Last, so that a new version or revision keeps the layers above.
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="usage-rollup" \
      org.opencontainers.image.description="Upgrade a self-hosted Multica database from its daily usage rollups to the hourly one" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
# A run that ends is no service: its exit status is the answer.
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
ENTRYPOINT ["/app/entrypoint.sh"]
