// Many of the mistakes of user threads, in one app.
module.exports = {
  apps: [{
    name: 'myapp',
    script: './server.js',
    instances: 3,
    exec_mode: 'fork',
    increment_var: 'PORT',
    wait_ready: true,
    listen_timeout: 2000,
    treekill: false,
    cron_restart: '0 4 1 1 *',
    env: { PORT: @port@, HANDOFF_PRELOAD_SOCKET: '@preload@', PASSWORD: 'planted-secret' }
  }]
};
