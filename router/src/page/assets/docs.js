// The API's description at /openapi.json as a page for people.

import { h, put } from "./dom.js";

/** The largest token id and count: as a bound it says nothing. */
const NO_BOUND = 4294967295;

const nameOf = (schema) => schema.$ref?.split("/").pop();
const table = (rows) => h("div", { class: "scroll" }, h("table", {}, ...rows));
const row = (...cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, cell)));

/** Follows a reference such as `#/components/schemas/Usage`. */
function resolve(doc, schema) {
  if (!schema.$ref) return schema;
  return schema.$ref.slice(2).split("/").reduce((at, key) => at[key], doc);
}

function typeOf(schema) {
  if (schema.$ref) return nameOf(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const known = (values) => values.filter((value) => value !== null && value !== "null");
  if (schema.enum) return known(schema.enum).map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return known(schema.anyOf.map(typeOf)).join(" | ");
  const types = known([schema.type].flat()).join(" | ");
  return types === "array" ? `list of ${typeOf(schema.items ?? {})}` : types || "null";
}

function notesOf(schema, isRequired) {
  const notes = [];
  if (schema.minimum !== undefined) notes.push(`≥ ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) notes.push(`> ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined && schema.maximum < NO_BOUND) notes.push(`≤ ${schema.maximum}`);
  if (schema.default !== undefined) notes.push(`default ${JSON.stringify(schema.default)}`);
  if (isRequired) notes.push("required");
  return notes.join(", ");
}

function fields(doc, reference) {
  const schema = resolve(doc, reference);
  const rows = Object.entries(schema.properties ?? {}).map(([name, value]) => {
    const notes = notesOf(value, schema.required?.includes(name));
    return row(h("code", {}, name), typeOf(value), notes, value.description ?? "");
  });
  return [h("h3", {}, nameOf(reference) ?? ""), table(rows)];
}

function answers(doc, described) {
  return Object.entries(described.responses).map(([status, reference]) => {
    const answer = resolve(doc, reference);
    const kinds = Object.entries(answer.content ?? {}).map(([kind, { schema }]) => `${kind}: ${typeOf(schema)}`);
    return row(status, answer.description, kinds.join("; "));
  });
}

function operation(doc, path, method, described) {
  const head = h("summary", {}, h("b", {}, method.toUpperCase()), h("code", {}, path), h("span", {}, described.summary));
  const details = h("details", {}, head);
  const body = described.requestBody?.content["application/json"]?.schema;
  if (body) details.append(...fields(doc, body));
  const parameters = (described.parameters ?? []).map((it) => row(h("code", {}, it.name), it.in, it.description ?? ""));
  if (parameters.length) details.append(h("h3", {}, "Parameters"), table(parameters));
  details.append(h("h3", {}, "Answers"), table(answers(doc, described)));
  const answer = described.responses["200"]?.content?.["application/json"]?.schema;
  if (answer?.$ref) details.append(...fields(doc, answer));
  return details;
}

function show(doc) {
  put(document.getElementById("about"), `Version ${doc.info.version}. ${doc.info.description}`);
  const operations = Object.entries(doc.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => ({ path, method, described })));
  for (const { name } of doc.tags) {
    const own = operations.filter(({ described }) => described.tags.includes(name));
    const shown = own.map(({ path, method, described }) => operation(doc, path, method, described));
    document.getElementById("paths").append(h("h2", {}, name), ...shown);
  }
}

fetch("/openapi.json").then((answer) => answer.json()).then(show).catch((error) => {
  put(document.getElementById("about"), `The description cannot be read: ${error.message}`);
});
