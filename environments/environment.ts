/** What an agent acts in. Knows nothing of Temporal, engines or training. */

export interface SearchResult {
  url: string;
  title: string;
  snippet: string;
  score: number;
}

export interface SearchOptions {
  limit: number;
  /** Leak guard: never returned; hits are counted in `denied`. */
  denyUrls?: readonly string[];
  /** Which ranking answers; fused is what agents use, the others are for `world eval`. */
  mode?: 'fused' | 'dense' | 'bm25';
}

export interface SearchResponse {
  /** Deduplicated over the queries of one call, best first. */
  results: SearchResult[];
  denied: number;
}

export interface VisitOptions {
  /** Budget of the returned text, in tokens of `countTokens`, shared by all pages of the call. */
  maxTokens: number;
  countTokens: (text: string) => number;
  denyUrls?: readonly string[];
}

export type VisitResult =
  | { url: string; status: 'ok'; title: string; text: string; truncated: boolean }
  | { url: string; status: 'not_found' | 'denied'; message: string };

/** A closed world of pages: what is not in the corpus does not exist. Outages throw; they are never "no results". */
export interface World {
  search(queries: readonly string[], options: SearchOptions): Promise<SearchResponse>;
  visit(urls: readonly string[], goal: string, options: VisitOptions): Promise<VisitResult[]>;
  close(): Promise<void>;
}

/** One page as a source yields it, before it is stored. */
export interface SourcePage {
  url: string;
  title: string;
  /** Markdown or plain text. */
  text: string;
  /** Structured facts a source knows about its page (installed_packages: licence, version, …); stored as JSON. */
  facts?: Record<string, string | string[]>;
}
