// One Node client, told what to do: a JSON command per line on stdin, a JSON answer per line on stdout.
// The first argument names the client: http, fetch or axios. NODE_PATH says where axios and ws are.
"use strict";

const http = require("node:http");
const readline = require("node:readline");
const { Readable } = require("node:stream");
const channel = require("node:diagnostics_channel");

const PATIENCE = 10_000;
let connections = 0;

// ---------------------------------------------------------------- what all clients share

class CountingAgent extends http.Agent {
  createConnection(...parameters) {
    connections += 1;
    return super.createConnection(...parameters);
  }
}

const agent = new CountingAgent({ keepAlive: true });

function pairs(raw) {
  const result = [];
  for (let at = 0; at < raw.length; at += 2) result.push([raw[at], raw[at + 1]]);
  return result;
}

function bodyOf(command) {
  return command.body === null ? null : Buffer.from(command.body, "base64");
}

// Uneven pieces, so that chunks are not all alike.
function* pieces(body) {
  for (let at = 0, size = 1; at < body.length; at += size, size = ((size * 3) % 70001) + 1) {
    yield body.subarray(at, at + size);
  }
}

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

// Arrival times of `data:` events, in milliseconds since the first byte.
async function eventTimes(stream) {
  const times = [];
  let text = "";
  for await (const part of stream) {
    text += Buffer.from(part).toString();
    const seen = text.split("\n\n").length - 1;
    while (times.length < seen) times.push(performance.now());
  }
  return times.map((time) => time - times[0]);
}

// ---------------------------------------------------------------- node:http

// Headers as a list of names and values keeps their case and repetitions. Node writes Host itself only for objects.
function plainRequest(command, options = {}) {
  const url = new URL(command.url);
  const headers = command.headers.flat();
  const body = bodyOf(command);
  if (body !== null && command.chunked) headers.push("Transfer-Encoding", "chunked");
  else if (body !== null) headers.push("Content-Length", String(body.length));
  const via = command.proxy ? new URL(command.proxy) : url;
  return http.request({
    agent,
    host: via.hostname,
    port: via.port,
    method: command.method,
    path: command.proxy ? command.url : url.pathname + url.search,
    headers: ["Host", url.host, ...headers],
    timeout: PATIENCE,
    ...options,
  });
}

function answered(request) {
  return new Promise((resolve, reject) => {
    request.once("response", resolve);
    request.once("error", reject);
    request.once("timeout", () => request.destroy(new Error("no answer in time")));
  });
}

async function httpResponse(command) {
  const request = plainRequest(command);
  const answer = answered(request);
  const body = bodyOf(command);
  let continued = false;
  if (command.expect) {
    request.on("continue", () => ((continued = true), request.end(body)));
    request.flushHeaders();
  } else if (body !== null && command.chunked) {
    for (const piece of pieces(body)) request.write(piece);
    request.end();
  } else {
    request.end(body ?? undefined);
  }
  const response = await answer;
  response.continued = continued;
  return response;
}

async function httpCall(command) {
  let response = await httpResponse(command);
  let hops = command.follow ? 5 : 0;
  while (hops-- > 0 && response.statusCode >= 300 && response.headers.location !== undefined) {
    await collect(response);
    const again = response.statusCode >= 307;
    command = {
      ...command,
      url: new URL(response.headers.location, command.url).href,
      method: again ? command.method : "GET",
      body: again ? command.body : null,
    };
    response = await httpResponse(command);
  }
  const body = await collect(response);
  const headers = pairs(response.rawHeaders);
  return { status: response.statusCode, headers, body, url: command.url, continued: response.continued };
}

// ---------------------------------------------------------------- fetch

channel.subscribe("undici:client:connected", () => (connections += 1));

function fetchOptions(command) {
  const body = bodyOf(command);
  const streamed = body !== null && command.chunked;
  const whole = body && new Blob([body]); // a Buffer would be gone when a redirect needs it again
  return {
    method: command.method,
    headers: command.headers,
    body: streamed ? Readable.toWeb(Readable.from(pieces(body))) : whole,
    duplex: streamed ? "half" : undefined,
    redirect: command.follow ? "follow" : "manual",
    signal: AbortSignal.timeout(PATIENCE),
  };
}

async function fetchCall(command) {
  const response = await fetch(command.url, fetchOptions(command));
  const body = Buffer.from(await response.arrayBuffer());
  return { status: response.status, headers: [...response.headers], body, url: response.url };
}

// ---------------------------------------------------------------- axios

function axiosOptions(command, more = {}) {
  const body = bodyOf(command);
  const proxy = command.proxy ? new URL(command.proxy) : null;
  return {
    method: command.method,
    url: command.url,
    headers: Object.fromEntries(command.headers),
    data: body !== null && command.chunked ? Readable.from(pieces(body)) : body ?? undefined,
    proxy: proxy && { protocol: "http", host: proxy.hostname, port: Number(proxy.port) },
    httpAgent: agent,
    maxRedirects: command.follow ? 5 : 0,
    maxBodyLength: Infinity,
    timeout: PATIENCE,
    validateStatus: () => true,
    responseType: "arraybuffer",
    ...more,
  };
}

async function axiosCall(command) {
  const response = await require("axios")(axiosOptions(command));
  const message = response.request.res;
  return {
    status: response.status,
    headers: pairs(message.rawHeaders),
    body: Buffer.from(response.data),
    url: message.responseUrl ?? command.url,
  };
}

// ---------------------------------------------------------------- one table of clients

const get = (command) => ({ headers: [], body: null, method: "GET", ...command });

const clients = {
  http: {
    call: httpCall,
    stream: async (command) => httpResponse(get(command)),
    abort: (stream) => stream.destroy(),
  },
  fetch: {
    call: fetchCall,
    stream: async (command) => {
      const response = await fetch(command.url);
      return Readable.fromWeb(response.body);
    },
    abort: (stream) => stream.destroy(),
  },
  axios: {
    call: axiosCall,
    stream: async (command) => (await require("axios")(axiosOptions(get(command), { responseType: "stream" }))).data,
    abort: (stream) => stream.destroy(),
  },
};

const client = clients[process.argv[2]];

// Read `bytes` of a body, then hang up in the middle of it.
async function abort(command) {
  const stream = await client.stream(command);
  stream.on("error", () => {});
  let got = 0;
  await new Promise((resolve, reject) => {
    stream.on("data", (part) => {
      got += part.length;
      if (got >= command.bytes) resolve();
    });
    stream.on("end", () => reject(new Error("the body ended")));
  });
  client.abort(stream);
  return { got };
}

async function perform(command) {
  if (command.op === "events") return { times: await eventTimes(await client.stream(command)) };
  if (command.op === "abort") return abort(command);
  const answer = await client.call(command);
  return { ...answer, body: answer.body.toString("base64") };
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let result;
    try {
      result = await perform(JSON.parse(line));
    } catch (error) {
      result = { error: `${error.message}${error.cause ? `: ${error.cause.message ?? error.cause}` : ""}` };
    }
    process.stdout.write(`${JSON.stringify({ ...result, connections })}\n`);
  }
  process.exit(0);
}

main();
