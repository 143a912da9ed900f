# Of the Debian for which `handoff` was built; it does not run on Alpine (musl).
FROM node:22-bookworm-slim
# procps: PM2 finds a worker's children with ps.
RUN apt-get update && apt-get install -y --no-install-recommends procps && rm -rf /var/lib/apt/lists/* \
    && npm install -g pm2@7
COPY handoff /usr/local/bin/handoff
COPY entrypoint.sh /usr/local/bin/entrypoint.sh
WORKDIR /app
COPY app/package.json app/package-lock.json ./
RUN npm ci --omit=dev
COPY app/ ./
ENV NODE_ENV=production HANDOFF_CONTROL=unix:/control/nginx.sock
CMD ["entrypoint.sh"]
