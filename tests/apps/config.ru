# The sample application for puma: the routes of server.js, and nothing that knows of Handoff.

require 'json'

ORDERS = File.open(ENV.fetch('ORDERS', File::NULL), 'a')

def order(what, name)
  ORDERS.syswrite("#{what} #{name} #{Process.pid} #{Process.clock_gettime(Process::CLOCK_MONOTONIC, :nanosecond)}\n")
end

run(lambda do |env|
  status = 200
  case env['PATH_INFO']
  when '/slow'
    sleep 0.3
  when '/orders'
    name = JSON.parse(env['rack.input'].read)['id']
    order('start', name)
    sleep 0.05
    order('done', name)
    status = 201
  end
  [status, { 'Content-Type' => 'text/plain', 'X-Worker-PID' => Process.pid.to_s }, ["ok\n"]]
end)
