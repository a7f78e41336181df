// Node's ws, as its examples broadcast.
const { WebSocket, WebSocketServer } = require('ws');

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.env.PORT), path: '/ws' });

server.on('connection', (member) => {
  member.on('error', () => {});
  member.on('message', (data) => {
    const text = JSON.stringify({ type: 2, body: JSON.parse(data).body });
    for (const each of server.clients) {
      if (each.readyState === WebSocket.OPEN) each.send(text);
    }
  });
});
