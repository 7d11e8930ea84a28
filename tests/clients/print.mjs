// JSON of a store: its attributes, and of each array the shape, the dimension names and the SHA-256 of its bytes in C order
import { createHash } from "node:crypto";

export async function print(attributes, names, read) {
  const arrays = {};
  for (const name of names) {
    const { bytes, shape, dims } = await read(name);
    const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    arrays[name] = { sha256: createHash("sha256").update(view).digest("hex"), shape, dims };
  }
  const plain = (key, value) => (typeof value === "bigint" ? Number(value) : value);
  console.log(JSON.stringify({ attributes, arrays }, plain));
}
