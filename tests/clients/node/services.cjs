// Two services as the platforms write them: an Express one that wants a key and to know who calls, a Fastify one that
// wants an internal token. Prints both ports.
const express = require("express");
const fastify = require("fastify");

const { SERVICE_API_KEY, INTERNAL_AUTH_TOKEN } = process.env;

function wantServiceAuth(req, res, next) {
  if (!SERVICE_API_KEY || req.headers["x-api-key"] !== SERVICE_API_KEY) {
    return res.status(401).json({ error: "UNAUTHORIZED" });
  }
  const serviceName = req.headers["x-service-name"];
  const serviceId = req.headers["x-service-id"];
  if (!serviceName || !serviceId) return res.status(400).json({ error: "BAD_REQUEST" });
  req.caller = { serviceName, serviceId };
  next();
}

const app = express();
app.use(express.json());
app.get("/health", (_, res) => res.json({ ok: true }));
app.use("/internal", wantServiceAuth);
app.all("/internal/who", (req, res) => res.json({ caller: req.caller, user: req.headers["x-user-id"] ?? null }));
const one = app.listen(0, "127.0.0.1", async () => {
  const two = fastify();
  two.get("/internal/notion/:user", async (request, reply) => {
    if (!INTERNAL_AUTH_TOKEN || request.headers["x-internal-auth"] !== INTERNAL_AUTH_TOKEN) {
      return reply.status(401).send({ error: "Unauthorized" });
    }
    return { user: request.params.user };
  });
  await two.listen({ port: 0, host: "127.0.0.1" });
  console.log(JSON.stringify([one.address().port, two.server.address().port]));
});
