// The configuration of Nchan, a module of nginx: WebSocket subscribers of /sub/USER, and publishers of /pub/USER.

export const NCHAN_MODULE = '/usr/lib/nginx/modules/ngx_nchan_module.so';

// Without a store, messages are passed on from memory. One worker: several would pass messages between each other.
// Publishers have a listener of their own, as Nchan advises.
export function nchanConfiguration(port, admin, store) {
  const messages = store ? 'nchan_redis_pass store;' : 'nchan_store_messages off;';
  return `load_module ${NCHAN_MODULE};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr error;
events { worker_connections 20000; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_buffer_size 128k;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${name};`).join(' ')}
  nchan_shared_memory_size 512m;
  ${store ? `upstream store { nchan_redis_server ${store}; }` : ''}
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location ~ ^/sub/(.+)$ {
      nchan_subscriber websocket;
      nchan_subscriber_first_message newest;
      nchan_websocket_ping_interval 25s;
      nchan_channel_id $1;
      ${messages}
    }
  }
  server {
    listen 127.0.0.1:${admin};
    location ~ ^/pub/(.+)$ {
      nchan_publisher http;
      nchan_channel_id $1;
      ${messages}
    }
  }
}
`;
}
