#!/bin/sh
# PM2 is process 1: `docker stop` speaks to it, and the container ends with it. The sidecar beside it lives until then, so it
# tells nginx of each worker's end.
handoff run &
exec pm2-runtime start ecosystem.config.js
