// The `ws` library against a WebSocket URL: plays one scene and prints what it saw as JSON.
// Arguments: the name of the scene, the URL. NODE_PATH says where ws is.
"use strict";

const crypto = require("node:crypto");
const { once } = require("node:events");
const WebSocket = require("ws");

const MEGABYTE = 1 << 20;

async function opened(url, protocols = []) {
  const socket = new WebSocket(url, protocols, { handshakeTimeout: 5000 });
  await once(socket, "open");
  return socket;
}

async function answer(socket, message) {
  const arriving = once(socket, "message");
  socket.send(message);
  const [data, isBinary] = await arriving;
  return { data, isBinary };
}

async function closed(socket) {
  const [code, reason] = await once(socket, "close");
  return { code, reason: reason.toString() };
}

const scenes = {
  async talk(url) {
    const socket = await opened(url, ["chat.v1", "chat.v2"]);
    const text = await answer(socket, "žluťoučký kůň");
    const binary = await answer(socket, Buffer.from([0, 255, 1, 254]));
    const large = crypto.randomBytes(MEGABYTE);
    const back = await answer(socket, large);
    const pong = once(socket, "pong");
    socket.ping("still there?");
    const [payload] = await pong;
    const end = closed(socket);
    socket.close(4001, "enough");
    return {
      protocol: socket.protocol,
      text: text.data.toString(),
      textIsBinary: text.isBinary,
      binary: [...binary.data],
      binaryIsBinary: binary.isBinary,
      largeIsSame: large.equals(back.data),
      pong: payload.toString(),
      end: await end,
    };
  },

  async closedByTarget(url) {
    const socket = await opened(url);
    const end = closed(socket);
    socket.send("close 4321 go away");
    return end;
  },

  async brokenOff(url) {
    const socket = await opened(url);
    socket.on("error", () => {});
    const end = closed(socket);
    socket.send("drop");
    return end;
  },

  async greeted(url) {
    const messages = [];
    const socket = new WebSocket(url);
    socket.on("message", (data) => messages.push(data.toString()));
    return { messages, end: await closed(socket) };
  },

  async refused(url) {
    const socket = new WebSocket(url);
    socket.on("error", () => {});
    const [, response] = await once(socket, "unexpected-response");
    let body = "";
    for await (const part of response) body += part;
    return { status: response.statusCode, body };
  },

  async crowd(url) {
    const one = async (number) => {
      const socket = await opened(url);
      let right = 0;
      for (let turn = 0; turn < 10; turn++) {
        const message = `${number}.${turn}`;
        right += (await answer(socket, message)).data.toString() === message;
      }
      const end = closed(socket);
      socket.close(1000);
      await end;
      return right;
    };
    const rights = await Promise.all(Array.from({ length: 50 }, (_, number) => one(number)));
    return { right: rights.reduce((sum, right) => sum + right, 0) };
  },
};

scenes[process.argv[2]](process.argv[3]).then(
  (result) => {
    process.stdout.write(JSON.stringify(result));
    process.exit(0);
  },
  (error) => {
    process.stdout.write(JSON.stringify({ error: String(error) }));
    process.exit(1);
  },
);
