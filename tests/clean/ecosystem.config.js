// The article's, with the paths of the stage.
module.exports = {
  apps: [{
    name: 'myapp',
    script: './dist/server.js',
    instances: 'max',
    exec_mode: 'cluster',
    wait_ready: true,
    listen_timeout: 10000,
    kill_timeout: 8000,
    min_uptime: 3000,
    max_restarts: 5,
    env_production: {
      NODE_ENV: 'production',
      PORT: 3000,
      ORDERS: '/var/log/myapp/orders',
    },
    error_file: '/var/log/myapp/error.log',
    out_file: '/var/log/myapp/out.log',
    log_date_format: 'YYYY-MM-DD HH:mm:ss Z',
    merge_logs: true,
  }],
};
