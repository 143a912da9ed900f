module.exports = {
  apps: [
    {
      name: 'shop',
      script: 'server.js',
      exec_mode: 'fork',
      instances: 2,
      increment_var: 'PORT',
      wait_ready: true,
      kill_timeout: 8000,
      // Not 127.0.0.1: nginx comes from another container.
      env: { PORT: 3000, HOST: '0.0.0.0' },
    },
  ],
};
