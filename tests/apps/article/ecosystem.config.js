// What a widely read guide to zero downtime says.
module.exports = {
  apps: [{
    name: 'myapp',
    script: './server.js',
    instances: 4,
    exec_mode: 'cluster',
    wait_ready: true,
    listen_timeout: 10000,
    kill_timeout: 8000,
    min_uptime: 3000,
    max_restarts: 5,
    env_production: {
      NODE_ENV: 'production',
      PORT: @port@
    },
    error_file: './error.log',
    out_file: './out.log',
    log_date_format: 'YYYY-MM-DD HH:mm:ss Z',
    merge_logs: true
  }]
};
