// What an answer costs: whole picos (10^-12), as the ledger counts them.

function perToken(price) {
  const [whole, places = ""] = price.split(".");
  return BigInt(whole + places.padEnd(6, "0"));
}

export function cost(usage, price) {
  const hit = usage.prompt_cache_hit_tokens ?? usage.prompt_tokens_details?.cached_tokens ?? 0;
  const miss = usage.prompt_tokens - hit;
  return (
    BigInt(hit) * perToken(price.input_hit) +
    BigInt(miss) * perToken(price.input_miss) +
    BigInt(usage.completion_tokens) * perToken(price.output)
  );
}

export function shown(picos, currency) {
  const digits = picos.toString().padStart(13, "0");
  const places = digits.slice(-12).replace(/0+$/, "").padEnd(2, "0");
  return `${digits.slice(0, -12)}.${places} ${currency}`;
}
