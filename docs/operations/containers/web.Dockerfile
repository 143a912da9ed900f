FROM debian:bookworm-slim
COPY libnginx-mod-http-handoff_*.deb /tmp/
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light /tmp/libnginx-mod-http-handoff_*.deb \
    && rm -rf /var/lib/apt/lists/* /tmp/*.deb
COPY nginx.conf /etc/nginx/nginx.conf
CMD ["nginx", "-g", "daemon off;"]
# nginx finishes what it has.
STOPSIGNAL SIGQUIT
